"""Distribution: ranks, how they meet, hear of each other and share weights."""
