"""Pictures and files for people and other programs, made from a store's arrays."""
