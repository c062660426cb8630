"""onewave inside other libraries. Each module needs the library that it is named after, and imports it when it is used."""
