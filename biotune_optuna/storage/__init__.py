"""Where studies are kept: any SQL database or a journal file, through losses of connection."""
