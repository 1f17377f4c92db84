"""What a clip costs before it is made: work from a configuration, time from a roofline, money from dated prices."""
