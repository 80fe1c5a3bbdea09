"""What a run says of itself: recorder, limits, forecast, documents, HTML."""
