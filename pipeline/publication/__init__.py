"""Publish a build where others look for datasets: snapshot → card and metadata → the Hugging Face
hub. Only what the licences of videos and tracks allow is uploaded."""
