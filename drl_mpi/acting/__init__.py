"""How actions are chosen: in the actor's own rank, or centrally. Import its modules directly."""
