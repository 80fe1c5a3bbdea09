"""What a result must hold before it is published: rules, drift, golden rows."""
