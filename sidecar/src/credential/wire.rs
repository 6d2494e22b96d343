//! Recorded exchanges of the real framework, for tests.
