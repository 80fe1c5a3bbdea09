"""All that knows Ray: the datasource, stages and actors."""
