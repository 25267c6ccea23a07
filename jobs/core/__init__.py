"""What every part of a job rests on: randomness as a function, what ranks say to each other, devices, paths, texts."""
