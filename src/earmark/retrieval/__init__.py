"""Hearing a glossary term in a short chunk of speech: a frozen Whisper encoder, a trained audio head and a
spelling-aware text tower that share one vector space."""
