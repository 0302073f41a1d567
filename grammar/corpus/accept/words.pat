full - none | self
