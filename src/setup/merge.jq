.[1] as $new | .[0] | reduce ($new | keys[]) as $key (.; .[$key] += ($new[$key] - (.[$key] // [])))
