"""Pages: headings, texts, tables and figures, as one HTML file or as Markdown."""
