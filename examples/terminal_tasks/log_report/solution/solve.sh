#!/bin/bash
awk '$3 == 200 {n[$2]++; b[$2] += $4} END {for (p in n) print p "," n[p] "," b[p]}' /app/access.log |
  sort -t, -k3,3nr -k1,1 > /app/report.csv
