"""How well a backend finds spoken terms, on speakers that training has not heard."""
