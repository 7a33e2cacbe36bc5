"""How actions are chosen: by a network in the actor's own rank. Import its modules directly."""
