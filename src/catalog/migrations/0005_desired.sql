-- What a running archive should be like from now on, as JSON: whoever asks for it writes it here, and the job's owner reads it.
ALTER TABLE jobs ADD COLUMN desired TEXT;
