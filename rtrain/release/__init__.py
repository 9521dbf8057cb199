"""From an export to what may answer users: checks that decide, and the record that stays with it."""
