#!/usr/bin/env python3
"""A persistent program: answers with the sentences of a text that say most.

    systemd/install queue --persistent summarise /usr/local/bin/summarise.py

A sentence weighs as much as the words in it that the text repeats. What is
slow to load (here little, elsewhere a model) is loaded once, at the start.
"""

import collections
import json
import re
import sys

SENTENCES = 2
COMMON = set("a an and are as at be but by for from has have he her his i in is it its not of on or she that the their "
             "they this to was we were which will with you".split())


def words(text):
    return [w for w in re.findall(r"\w+", text.lower()) if w not in COMMON]


def summarise(text):
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    count = collections.Counter(words(text))

    def weight(sentence):
        found = words(sentence)
        return sum(count[w] for w in found) / (len(found) + 3)

    best = sorted(sentences, key=weight, reverse=True)[:SENTENCES]
    return " ".join(s for s in sentences if s in best)


def say(message):
    print(json.dumps(message), flush=True)  # one line, at once


say({"revq": 1})
sys.stdin.readline()  # the worker's greeting
for line in sys.stdin:
    task = json.loads(line)
    if task["text"].strip():
        say({"id": task["id"], "text": summarise(task["text"])})
    else:
        say({"id": task["id"], "error": "there is nothing to summarise", "retry": "no"})
