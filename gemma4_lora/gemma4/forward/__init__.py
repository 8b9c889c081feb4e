"""What parts of Gemma 4 compute, and what gemma has wrong there."""
