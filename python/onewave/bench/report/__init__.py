"""A record as one HTML page that needs nothing else: tables, and curves drawn by matplotlib."""
