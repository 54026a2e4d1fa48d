"""What the leader does for all: it advances the log's clock, fires crons and assigns push workers to nodes."""
