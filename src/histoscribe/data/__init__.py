"""The nouns: validated once when made, frozen after."""
