#!/bin/bash
# Two rewards: it builds in the right order; it builds again after a change.
built=0; rebuilt=0
rm -rf /app/out
make -C /app > /dev/null && [ "$(cat /app/out/message.txt)" = "$(printf 'part 1\npart 2\npart 10')" ] && built=1
sleep 0.02; echo "part two" > /app/parts/2.txt
make -C /app > /dev/null && grep -q "part two" /app/out/message.txt && rebuilt=$built
mkdir -p /logs/verifier
echo "{\"built\": $built, \"rebuilt\": $rebuilt}" > /logs/verifier/reward.json
