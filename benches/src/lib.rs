//! What a record costs at each step, measured.
