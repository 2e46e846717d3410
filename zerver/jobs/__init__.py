"""Jobs: runs that are made later, elsewhere, again."""
