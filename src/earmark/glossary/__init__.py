"""Stage glossary: one list of main terms and their aliases, and what was ambiguous."""
