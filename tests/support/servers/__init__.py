"""Real servers on loopback, and a Ray of their own: stores, hubs, proxies, clusters."""
