#!/bin/bash
printf 'PARTS := $(shell ls -v parts/*.txt)\nout/message.txt: $(PARTS)\n\tmkdir -p out\n\tcat $^ > $@\n' > /app/Makefile
