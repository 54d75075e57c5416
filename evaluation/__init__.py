"""Looking at results and measuring them: reports, reconstruction, the demo."""
