"""uapi/linux/if_packet.h and bits/socket.h: packet sockets, and messages to and from sockets.

struct msghdr {                    struct cmsghdr {          struct tpacket_auxdata {
    void *msg_name;                    size_t cmsg_len;          __u32 tp_status;
    socklen_t msg_namelen;             int cmsg_level;           __u32 tp_len;
    struct iovec *msg_iov;             int cmsg_type;            __u32 tp_snaplen;
    size_t msg_iovlen;             };                            __u16 tp_mac;
    void *msg_control;                                           __u16 tp_net;
    size_t msg_controllen;                                       __u16 tp_vlan_tci;
    int msg_flags;                                               __u16 tp_vlan_tpid;
};                                                           };

64-bit layouts.
"""

from __future__ import annotations

SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_VNET_HDR = 15
PACKET_VNET_HDR_SZ = 24

TP_STATUS_VLAN_VALID = 1 << 4

MSG_TRUNC = 0x20
MSG_DONTWAIT = 0x40

MSGHDR_IOV, MSGHDR_IOVLEN, MSGHDR_CONTROL, MSGHDR_CONTROLLEN, MSGHDR_FLAGS = 16, 24, 32, 40, 48
MSGHDR_SIZE = 56
CMSG_LEVEL, CMSG_TYPE, CMSG_DATA = 8, 12, 16
