"""Second derivatives that are exact and cheap: usable by guidance, networks and any loop of one's own."""
