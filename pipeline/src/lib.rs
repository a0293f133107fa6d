#![doc = "The moving parts of Sunder."]
