"""Pictures for people: what the network is shown, and where its predictions go wrong."""
