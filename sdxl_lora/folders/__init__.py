"""Users' image folders: their contents, the files that are used, and the reasons why others are not."""
