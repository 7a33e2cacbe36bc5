"""Where gradients are applied: in the learner's own rank, or summed over several learners first."""
