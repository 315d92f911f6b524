"""Text as people paste it and as outlets can show it: cleaning, plain text, charsets, line breaking. Pure."""
