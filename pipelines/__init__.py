"""From images to stores: one image end to end, and many."""
