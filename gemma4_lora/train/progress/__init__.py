"""What a run says of itself: before its first step, and as it goes on."""
