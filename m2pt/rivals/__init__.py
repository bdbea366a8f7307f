"""What pathways are compared with: other ways to use an auxiliary, or to add parameters."""
