"""What kernel headers and specifications say: numbers and struct layouts, no behaviour."""
