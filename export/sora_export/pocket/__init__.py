"""wan-pocket: the small text-to-video model this repository trains: its data, its training, its score."""
