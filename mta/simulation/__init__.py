"""What would happen: the real traffic code in a modelled world, under a clock that jumps.

In charge of playing scenarios (`mta.simulation.engine.simulate`), of forecasts and of history under other rules. Pure,
as the packages below it: no clock, no dice but its own (`mta.simulation.dice`), nothing but figures in and figures out.

It decides nothing about traffic: every message goes when and where `mta.traffic.schedule.Schedule` says. What it adds
is the far side, and a judge (`mta.simulation.judge`) that counts there, by itself, whether a limit was ever exceeded.
"""
