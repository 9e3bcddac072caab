"""Several dates of one place as one sequence, through the same encoder and heads as a run."""
