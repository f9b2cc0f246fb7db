#!/bin/bash
grep -rl "port = 8081" /app/tree | xargs sed -i "s/8081/8080/"
