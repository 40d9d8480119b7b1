"""The paper's tables and figures made again: experiments as data, runs of `resist_hvd.train`, tables and pages."""
