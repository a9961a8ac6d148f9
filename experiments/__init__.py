"""The paper's studies, one command each: methods x amounts of labels x repetitions x modes."""
