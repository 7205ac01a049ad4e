//! Ids: time and random bits in the vendors' forms.
