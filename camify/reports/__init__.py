"""Pictures and the page that show what a network looked at."""
