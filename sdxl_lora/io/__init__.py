"""Reading and writing files: whole writes, hashes, memos, downloads."""
